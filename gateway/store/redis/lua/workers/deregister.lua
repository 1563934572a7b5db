-- KEYS: the workers, the worker's open purchases and what they reserve. ARGV: worker.
-- Returns 1, or 0 while the worker has open journals.
if redis.call('EXISTS', KEYS[2]) == 1 then
  return 0
end
redis.call('ZREM', KEYS[1], ARGV[1])
-- A gateway of an earlier version settles purchases without deleting their fields.
redis.call('DEL', KEYS[3])
return 1
