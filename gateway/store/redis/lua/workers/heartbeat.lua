-- KEYS: books. ARGV: worker.
redis.call('ZADD', WORKERS, digits(now), ARGV[1])
return 0
