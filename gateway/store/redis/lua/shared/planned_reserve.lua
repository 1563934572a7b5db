-- `reserve` by the plan of the gateway: ARGV[9], and what follows it. It writes only if the plan holds
-- and everything fits; else the script goes on without it.
--
-- Returns -2, now, and two numbers of each counter in the order of the plan: of a bucket what is missing,
-- and the microseconds until it is full; of a window the spent and the reserved amount.

local function reserve_as_planned(plan)
  local seconds = now / SECOND
  if seconds < tonumber(ARGV[10]) or seconds >= tonumber(ARGV[11])
    or redis.call('EXISTS', KEYS[1]) == 1 then
    return nil
  end
  local reply, n, at = { -2, now }, 2, 3
  local levels, filled_at = {}, {}
  for i = 1, plan[1] do
    local amount, maximum = tonumber(ARGV[plan[at + 1] + 2]), tonumber(ARGV[plan[at + 2]])
    local stored = redis.call('HMGET', KEYS[plan[at]], 'level', 'at')
    local level = refilled(stored, maximum) - amount * UNIT
    if level < 0 then
      return nil
    end
    levels[i], filled_at[i] = amount > 0 and level, stored[2]
    reply[n + 1], reply[n + 2] = level_state(level, maximum)
    n, at = n + 2, at + 3
  end
  for _ = 1, plan[2] do
    local key, is_calendar, count = KEYS[plan[at]], plan[at + 1] == 1, plan[at + 2]
    local fields, stored = {}, nil
    for i = 1, count do
      local unit = plan[at + 1 + 2 * i]
      fields[2 * i - 1] = ARGV[unit]
      fields[2 * i] = ARGV[unit + 1]
    end
    if is_calendar or count > 1 then
      stored = redis.call('HMGET', key, unpack(fields))
    else -- of open purchases nothing is spent
      stored = { false, redis.call('HGET', key, fields[2]) }
    end
    for i = 1, count do
      local unit, maximum = plan[at + 1 + 2 * i], tonumber(ARGV[plan[at + 2 + 2 * i]])
      local amount = tonumber(ARGV[unit + 2])
      local spent, reserved = (stored[2 * i - 1] or 0) + 0, (stored[2 * i] or 0) + amount
      if maximum and amount ~= 0 and spent + reserved > maximum then
        return nil
      end
      reply[n + 1] = spent
      reply[n + 2] = reserved
      n = n + 2
    end
    at = at + 3 + 2 * count
  end

  change_planned_windows(plan, at)
  local text = digits(now)
  for i = 1, plan[1] do
    if levels[i] then
      local key = KEYS[plan[3 * i]]
      redis.call('HSET', key, 'level', levels[i], 'at', text)
      if begins_to_expire(filled_at[i]) then
        redis.call('EXPIRE', key, BUCKET_SECONDS)
      end
    end
  end
  local purchase, worker, consumptions, scopes = ARGV[1], ARGV[2], ARGV[6], ARGV[7]
  redis.call('HSET', KEYS[1], 'worker', worker, 'payload', ARGV[3], 'at', text,
    'consumptions', consumptions, 'windows', scopes, 'state', 'reserved')
  redis.call('HSET', KEYS[3], purchase, text .. '\n' .. consumptions .. '\n' .. scopes)
  redis.call('ZADD', KEYS[2], text, purchase)
  redis.call('ZADD', KEYS[4], text, worker)
  return reply
end

if ARGV[9] ~= '' then
  local reply = reserve_as_planned({ string.byte(ARGV[9], 1, -1) })
  if reply then
    return reply
  end
end
