-- `reserve` by the plan of the gateway: ARGV[9], and what follows it. It writes only if the plan holds
-- and everything fits; else the script goes on without it.

local function reserve_as_planned(plan)
  local seconds = now / SECOND
  if seconds < tonumber(ARGV[10]) or seconds >= tonumber(ARGV[11])
    or redis.call('EXISTS', KEYS[1]) == 1 then
    return nil
  end
  local states, n, i, taken = {}, 0, 2, {}
  for _ = 1, plan[1] do
    local kind, key, unit, ends = plan[i], KEYS[plan[i + 1]], plan[i + 2], plan[i + 4]
    local amount, maximum = tonumber(ARGV[unit + 2]), tonumber(ARGV[plan[i + 3]])
    local used, reserved, resets_in = 0, 0, 0
    if kind == 2 and ends == 0 then
      reserved = (redis.call('HGET', key, ARGV[unit + 1]) or 0) + amount
    elseif kind == 2 then
      local stored = redis.call('HMGET', key, ARGV[unit], ARGV[unit + 1])
      used, reserved = (stored[1] or 0) + 0, (stored[2] or 0) + amount
      resets_in = ARGV[ends] * SECOND - now
    elseif kind == 1 then
      local level = refilled(redis.call('HMGET', key, 'level', 'at'), maximum) - amount * UNIT
      if amount > 0 then
        if level < 0 then
          return nil
        end
        taken[key] = level
      end
      used, resets_in = level_state(level, maximum)
    end
    if kind == 2 and maximum and amount ~= 0 and used + reserved > maximum then
      return nil
    end
    -- In order. An assignment of all four begins with the last one, and Lua then uses a hash.
    states[n + 1] = used
    states[n + 2] = reserved
    states[n + 3] = resets_in
    states[n + 4] = 0
    n, i = n + 4, i + 5
  end

  change_planned_windows(plan, i)
  for i = 5, #KEYS do
    if taken[KEYS[i]] then
      redis.call('HSET', KEYS[i], 'level', taken[KEYS[i]], 'at', now)
      redis.call('EXPIRE', KEYS[i], BUCKET_SECONDS)
    end
  end
  local purchase, worker, consumptions, scopes, at = ARGV[1], ARGV[2], ARGV[6], ARGV[7], digits(now)
  redis.call('HSET', KEYS[1], 'worker', worker, 'payload', ARGV[3], 'at', at,
    'consumptions', consumptions, 'windows', scopes, 'state', 'reserved')
  redis.call('HSET', KEYS[3], purchase, at .. '\n' .. consumptions .. '\n' .. scopes)
  redis.call('ZADD', KEYS[2], at, purchase)
  redis.call('ZADD', KEYS[4], at, worker)
  return { -1, states, now, now, {}, { 'taken', 0, 0 } }
end

if ARGV[9] ~= '' then
  local reply = reserve_as_planned({ string.byte(ARGV[9], 1, -1) })
  if reply then
    return reply
  end
end
