-- KEYS: the periods of the kind, and the keys of the oldest.
-- ARGV: the kind, how long to keep a period after its end.
-- Removes the oldest such period; returns 1 if there was one. UNLINK frees it in a thread.
local ended = digits(now - tonumber(ARGV[2]))
local period = redis.call('ZRANGEBYSCORE', periods_key(ARGV[1]), '-inf', ended, 'LIMIT', 0, 1)[1]
if not period then
  return 0
end
need({ totals_key(period), full_groups_key(period) })
redis.write('UNLINK', totals_key(period))
redis.write('UNLINK', full_groups_key(period))
redis.write('ZREM', periods_key(ARGV[1]), period)
return 1
