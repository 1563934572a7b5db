-- Makes a key expire at `expiry`, in milliseconds as text, unless it already expires later. If `is_new`
-- is right, that mostly takes one call.
local function expire_at_least(key, expiry, is_new)
  if redis.call('PEXPIREAT', key, expiry, is_new and 'NX' or 'GT') == 1 then
    return
  end
  if redis.call('PEXPIRETIME', key) < tonumber(expiry) then
    redis.call('PEXPIREAT', key, expiry)
  end
end
