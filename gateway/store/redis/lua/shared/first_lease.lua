-- `acquire_lease` where there is neither an image nor a lease, as most purchases find it: it leases all
-- slots. The functions that read what is there are not even created, which takes a third of the time.

if redis.call('EXISTS', KEYS[1]) == 0 and redis.call('EXISTS', KEYS[2]) == 0 then
  local ends = digits(math.floor((now + ARGV[2]) / 1000))
  local lease, acquired = ends .. '000 ' .. now_digits() .. ' ' .. ARGV[1], {}
  for i = 1, ARGV[3] do
    acquired[i] = ARGV[3 + i]
    redis.call('HSET', KEYS[2], acquired[i], lease)
  end
  redis.call('PEXPIREAT', KEYS[2], ends)
  return { now, {}, acquired, {} }
end
