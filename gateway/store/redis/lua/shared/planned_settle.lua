-- `settle` by the plan of the gateway: ARGV[13], and what follows it. It writes only if the journal is
-- as a plan has left it, on the same day; else the script goes on without the plan.
--
-- KEYS     1 the journal, 2 the running totals, 3 the last id of the ledger, 4 its days, 5 and 6 its
--          streams of two days, 7 the worker's open purchases, 8 what they reserve, 9… buckets and windows
-- ARGV     13 the plan, 14 its doubles, 15 to 17 the ends of day, week and month in Unix seconds, 18 the
--          time of the reservation, 19 the worker, 20 the cost, 21 and 22 the two days, 23… the names of
--          running totals, then of each unit the field with its reserved amount, what that changes by,
--          the field with its spent amount, and what that changes by
-- doubles  1 and 2 when the day begins and ends, 3 the cost, 4 the first of the two days, in days since
--          1970, 5… the maxima of buckets
-- plan     1 to 3 how many running totals, buckets, and counters of windows there are, 4… of each bucket
--          its key and its maximum among the doubles; of each counter its key, whether the window is one
--          of the calendar, its unit, and which of the changes result in its spent and its reserved
--          amount (0 = none); then the groups of windows (see `change_planned_windows`)
--
-- Returns what `planned_reserve.lua` does.

local CLOSED_SECONDS = 7 * 86400 -- commands.CLOSED_JOURNAL_SECONDS
local NO_WINDOWS = '{"subjects":[],"amounts":{},"windows":[]}'

local function settle_as_planned(plan)
  local seconds, numbers = now / SECOND, unpack_numbers(ARGV[14])
  if seconds < numbers[1] or seconds >= numbers[2] then
    return nil
  end
  -- Compared by its time alone: what replaces a reservation gives it a new one. The rest is a kilobyte.
  local journal = redis.call('HMGET', KEYS[1], 'at', 'worker', 'state', 'place')
  local state = journal[3]
  if journal[1] ~= ARGV[18] or journal[2] ~= ARGV[19]
    or (state ~= 'received' and state ~= 'reserved') or journal[4] then
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
  local day = math.floor(ms / 86400000) - numbers[4]
  if day ~= 0 and day ~= 1 then
    return nil
  end

  local buckets, windows = 4, 4 + 2 * plan[2]
  local totals = {}
  change_planned_windows(plan, windows + 5 * plan[3], totals)
  local text = digits(ms)
  redis.call('XADD', KEYS[5 + day], text .. '-' .. count, 'record', ARGV[5])
  redis.call('HSET', KEYS[3], 'ms', text, 'count', count)
  redis.call('ZADD', KEYS[4], 'NX', 0, ARGV[21 + day])
  redis.call('HSET', KEYS[1], 'state', 'settled', 'charged', ARGV[12], 'presumed', '0',
    'attempt', ARGV[7], 'windows', NO_WINDOWS)
  redis.call('EXPIRE', KEYS[1], CLOSED_SECONDS)
  redis.call('HDEL', KEYS[1], 'payload')
  redis.call('ZREM', KEYS[7], ARGV[1])
  redis.call('HDEL', KEYS[8], ARGV[1])
  for i = 23, 22 + plan[1] do
    if redis.call('HINCRBY', KEYS[2], ARGV[i] .. ':charged', ARGV[20]) == numbers[3] then
      redis.call('HSET', KEYS[2], ARGV[i] .. ':first_charge', now_digits())
    end
  end

  local reply, n = { -2, now }, 2
  for at = buckets, windows - 1, 2 do
    local maximum = numbers[plan[at + 1]]
    local level = refilled(redis.call('HMGET', KEYS[plan[at]], 'level', 'at'), maximum)
    reply[n + 1], reply[n + 2] = level_state(level, maximum)
    n = n + 2
  end
  for _ = 1, plan[3] do
    local at, key, unit = windows, KEYS[plan[windows]], plan[windows + 2]
    local spent, reserved = totals[plan[at + 3]], totals[plan[at + 4]]
    if not spent then -- not changed; of open purchases nothing is spent
      spent = plan[at + 1] == 1 and redis.call('HGET', key, ARGV[unit + 2]) or 0
    end
    reply[n + 1] = tonumber(spent)
    reply[n + 2] = tonumber(reserved or redis.call('HGET', key, ARGV[unit]) or 0)
    n, windows = n + 2, windows + 5
  end
  return reply
end

if ARGV[13] ~= '' then
  local reply = settle_as_planned({ string.byte(ARGV[13], 1, -1) })
  if reply then
    return reply
  end
end
