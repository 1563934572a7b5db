-- KEYS: books. ARGV: how long silent.
return redis.call('ZRANGEBYSCORE', WORKERS, '-inf', digits(now - tonumber(ARGV[1])))
