-- KEYS: the workers, the worker's open purchases and what they reserve.
-- ARGV: worker.
-- Returns 1, or 0 while the worker has open journals.
if redis.call('EXISTS', open_key(ARGV[1])) == 1 then
  return 0
end
redis.write('ZREM', WORKERS, ARGV[1])
-- A gateway of an earlier version leaves the fields of purchases that it settles.
redis.write('DEL', reserved_key(ARGV[1]))
return 1
