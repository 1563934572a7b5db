-- POSTs image requests with wrk, and prints the results as a line of JSON.
--
-- The first argument after `--` is a salt. With it each request has a different prompt; if it is
-- empty, all have the same. Each run of wrk gets another salt and has one thread, so a counter is enough.
-- A second argument, a number, limits the counter: it starts again at zero there; 0 is no limit.
-- A third argument names a file with a key in each line, which the requests use in turn.

local BODY = '{"model":"gpt-image-2","prompt":"%s","size":"1024x1024","quality":"high"}'
local EVERYBODY = 'An otter that everybody wants to see'

local salt
local count = 0
local most
local always
local keys

local function headers()
  if not keys then
    return nil
  end
  local own = {Authorization = 'Bearer ' .. keys[count % #keys + 1]}
  for name, value in pairs(wrk.headers) do
    own[name] = own[name] or value
  end
  return own
end

local function post(prompt)
  return wrk.format('POST', nil, headers(), BODY:format(prompt))
end

function init(arguments)
  wrk.headers['Content-Type'] = 'application/json'
  salt = arguments[1]
  most = tonumber(arguments[2])
  if arguments[3] then
    keys = {}
    for key in io.lines(arguments[3]) do
      table.insert(keys, key)
    end
  end
  always = post(EVERYBODY)
end

function request()
  count = count + 1
  if salt == '' then
    return keys and post(EVERYBODY) or always
  end
  if most > 0 then
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
