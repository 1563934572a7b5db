-- `reserve` by the plan of the gateway: ARGV[9], and what follows it. It writes only if the plan holds
-- and everything fits; else the script goes on without it.
--
-- KEYS     1 the journal, 2 the worker's open purchases, 3 what they reserve, 4 the workers,
--          5… buckets and windows
-- ARGV     9 the plan, 10 its doubles, 11 to 13 the ends of day, week and month in Unix seconds,
--          14… of each unit the fields with its spent and its reserved amount, and its amount
-- doubles  1 and 2 when the day begins and ends, 3… the amounts of units, then the maxima of counters
-- plan     1 and 2 how many buckets and windows have counters, 3… those (see `check_planned`), then the
--          groups of windows (see `change_planned_windows`)
--
-- Returns -2, now, and two numbers of each counter, as `check_planned` adds them.

local function reserve_as_planned(plan)
  local seconds, numbers = now / SECOND, unpack_numbers(ARGV[10])
  if seconds < numbers[1] or seconds >= numbers[2]
    or redis.call('EXISTS', KEYS[1]) == 1 then
    return nil
  end
  local reply, text = { -2, now }, now_digits()
  local groups, levels, filled_at = check_planned(plan, numbers, reply, true)
  if not groups then
    return nil
  end
  change_planned_windows(plan, groups)
  write_planned_levels(plan, levels, filled_at, text)
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
