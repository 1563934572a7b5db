-- KEYS: books. ARGV: the time without a heartbeat.
return redis.call('ZRANGEBYSCORE', WORKERS, '-inf', digits(now - tonumber(ARGV[1])))
