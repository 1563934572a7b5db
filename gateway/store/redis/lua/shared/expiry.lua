-- Makes a key expire at `time`, unless it already expires later.
local function expire_at_least(key, time)
  local expiry = milliseconds(time)
  if redis.call('PEXPIRETIME', key) < tonumber(expiry) then
    redis.call('PEXPIREAT', key, expiry)
  end
end
