-- Makes a key expire at `time` or later: never before the expiry that it already has.
local function expire_at_least(key, time)
  local expiry = milliseconds(time)
  if redis.call('PEXPIRETIME', key) < tonumber(expiry) then
    redis.call('PEXPIREAT', key, expiry)
  end
end
