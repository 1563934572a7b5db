-- POSTs image requests with wrk, and prints the results as a line of JSON.
--
-- The argument after `--` is a salt. With it each request has a different prompt, without it all
-- have the same. Each run of wrk gets another salt and has one thread, so a counter is enough.
-- A second argument, a number, limits the counter: it starts again at zero there.

local BODY = '{"model":"gpt-image-2","prompt":"%s","size":"1024x1024","quality":"high"}'

local salt
local count = 0
local most
local always

local function post(prompt)
  return wrk.format('POST', nil, nil, BODY:format(prompt))
end

function init(arguments)
  wrk.headers['Content-Type'] = 'application/json'
  salt = arguments[1]
  most = tonumber(arguments[2])
  always = post('An otter that everybody wants to see')
end

function request()
  if not salt then
    return always
  end
  count = count + 1
  if most then
    count = count % most
  end
  return post('An otter that nobody has seen, ' .. salt .. '-' .. count)
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format(
    '\n{"requests": %d, "bytes": %d, "duration_micros": %d, "failed": %d, "p50_micros": %d}\n',
    summary.requests, summary.bytes, summary.duration, failed, latency:percentile(50)
  ))
end
