-- KEYS: the workers, the worker's open purchases.
-- ARGV: worker.
-- Returns 1, or 0 while the worker has open journals.
if redis.call('EXISTS', open_key(ARGV[1])) == 1 then
  return 0
end
redis.write('ZREM', WORKERS, ARGV[1])
return 1
