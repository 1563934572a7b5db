-- KEYS: books. ARGV: how long silent. Those that never beat have score 0 and are among them.
return redis.call('ZRANGEBYSCORE', WORKERS, '-inf', digits(now - tonumber(ARGV[1])))
