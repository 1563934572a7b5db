-- `settle` by the plan of the gateway: ARGV[13], and what follows it. It writes only if the journal is
-- as the gateway has reserved it, on the same day; else the script goes on without the plan.

local function settle_as_planned(plan)
  local seconds = now / SECOND
  if seconds < tonumber(ARGV[14]) or seconds >= tonumber(ARGV[15]) then
    return nil
  end
  local journal = redis.call('HMGET', KEYS[1], 'consumptions', 'windows', 'worker', 'state', 'place')
  local state = journal[4]
  if journal[1] ~= ARGV[18] or journal[2] ~= ARGV[19] or journal[3] ~= ARGV[20]
    or (state ~= 'received' and state ~= 'reserved') or journal[5] then
    return nil
  end
  local last = redis.call('HMGET', KEYS[3], 'ms', 'count')
  local ms, count, now_ms = tonumber(last[1]), tonumber(last[2]), math.floor(now / 1000)
  if not ms or count >= 999999 then -- MAX_COUNT
    return nil
  end
  count = count + 1
  if now_ms > ms then
    ms, count = now_ms, 0
  end
  local day = math.floor(ms / 86400000) - ARGV[22]
  if day ~= 0 and day ~= 1 then
    return nil
  end

  local totals_count, at = plan[1], 3
  local totals = change_planned_windows(plan, at + 7 * plan[2])
  local text = digits(ms)
  redis.call('XADD', KEYS[5 + day], text .. '-' .. count, 'record', ARGV[5])
  redis.call('HSET', KEYS[3], 'ms', text, 'count', count)
  redis.call('ZADD', KEYS[4], 'NX', 0, ARGV[23 + day])
  redis.call('HSET', KEYS[1], 'state', 'settled', 'charged', ARGV[12], 'presumed', '0',
    'attempt', ARGV[7], 'windows', NO_WINDOWS)
  redis.call('EXPIRE', KEYS[1], CLOSED_SECONDS)
  redis.call('HDEL', KEYS[1], 'payload')
  redis.call('ZREM', KEYS[7], ARGV[1])
  redis.call('HDEL', KEYS[8], ARGV[1])
  local cost = tonumber(ARGV[21])
  for i = 25, 23 + 2 * totals_count, 2 do
    if redis.call('HINCRBY', KEYS[2], ARGV[i], ARGV[21]) == cost then
      redis.call('HSET', KEYS[2], ARGV[i + 1], digits(now))
    end
  end

  local states, n = {}, 0
  for _ = 1, plan[2] do
    local kind, key, unit, ends = plan[at], KEYS[plan[at + 1]], plan[at + 2], plan[at + 4]
    local used, reserved, resets_in = 0, 0, 0
    if kind == 2 then
      reserved = totals[plan[at + 6]] or tonumber(redis.call('HGET', key, ARGV[unit]) or 0)
      if ends > 0 then
        used = totals[plan[at + 5]] or tonumber(redis.call('HGET', key, ARGV[unit + 2]) or 0)
        resets_in = ARGV[ends] * SECOND - now
      end
    elseif kind == 1 then
      local maximum = tonumber(ARGV[plan[at + 3]])
      used, resets_in = level_state(refilled(redis.call('HMGET', key, 'level', 'at'), maximum), maximum)
    end
    states[n + 1] = used
    states[n + 2] = reserved
    states[n + 3] = resets_in
    states[n + 4] = 0
    n, at = n + 4, at + 7
  end
  return { 'settled', 0, '', states, now, ARGV[7], '', 0 }
end

if ARGV[13] ~= '' then
  local reply = settle_as_planned({ string.byte(ARGV[13], 1, -1) })
  if reply then
    return reply
  end
end
