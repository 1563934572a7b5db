-- POSTs the bodies given after `--` in turn, on each connection every so many milliseconds (the
-- first argument).

wrk.method = 'POST'

local bodies, pause, sent = {}, 0, 0

function init(arguments)
  pause = tonumber(arguments[1])
  for i = 2, #arguments do
    table.insert(bodies, arguments[i])
  end
end

function delay()
  return pause
end

function request()
  sent = sent + 1
  return wrk.format(nil, nil, nil, bodies[sent % #bodies + 1])
end
