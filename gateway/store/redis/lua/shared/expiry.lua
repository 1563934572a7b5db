-- Makes a key expire at `time`, unless it already expires later. If `is_new` is right, that mostly takes
-- one call.
local function expire_at_least(key, time, is_new)
  local expiry = milliseconds(time)
  if redis.call('PEXPIREAT', key, expiry, is_new and 'NX' or 'GT') == 1 then
    return
  end
  if redis.call('PEXPIRETIME', key) < tonumber(expiry) then
    redis.call('PEXPIREAT', key, expiry)
  end
end
