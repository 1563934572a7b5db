-- Repeatedly POSTs the body given after `--`.

wrk.method = 'POST'

function init(arguments)
  wrk.body = arguments[1]
end
