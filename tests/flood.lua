-- Posts the body that stands behind `--`, again and again.

wrk.method = 'POST'

function init(arguments)
  wrk.body = arguments[1]
end
