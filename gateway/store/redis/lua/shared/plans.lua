-- Plans of purchases, as `gateway/store/redis/plans.py` makes them. A plan consists of numbers: most are
-- indexes of KEYS, ARGV or its doubles. All of KEYS are declared, so nothing here is checked with
-- `declared`, which is loaded after it.

-- The numbers that a plan computes with, from the doubles that the gateway has packed.
local function unpack_numbers(packed)
  return { struct.unpack('<' .. string.rep('d', #packed / 8), packed) }
end

-- Reads the counters of a plan, from its third number on: plan[1] buckets, each with its key, amount and
-- maximum; then plan[2] windows, each with its key, whether it is one of the calendar, the number of its
-- counters, and of each of these its fields in ARGV, amount and maximum. Amounts and maxima are among
-- `numbers`. Adds two numbers of each to `reply`: of a bucket what is
-- missing, and the microseconds until it is full; of a window the spent and the reserved amount, with the
-- amounts of now if it `reserves`.
-- Returns where the plan goes on, the new levels of buckets that give something, and when those were
-- filled; nil if an amount does not fit.
local function check_planned(plan, numbers, reply, reserves)
  local n, at, levels, filled_at = #reply, 3, {}, {}
  for i = 1, plan[1] do
    local amount, maximum = numbers[plan[at + 1]], numbers[plan[at + 2]]
    local stored = redis.call('HMGET', KEYS[plan[at]], 'level', 'at')
    local level = refilled(stored, maximum) - amount * UNIT
    if level < 0 then
      return nil
    end
    levels[i], filled_at[i] = amount > 0 and level, stored[2]
    local missing, full_in = level_state(level, maximum)
    reply[n + 1] = missing -- in order: an assignment of both begins with the last one
    reply[n + 2] = full_in
    n, at = n + 2, at + 3
  end
  for _ = 1, plan[2] do
    local key, is_calendar, count = KEYS[plan[at]], plan[at + 1] == 1, plan[at + 2]
    at = at + 3
    local stored
    if count > 1 then
      local fields = {}
      for i = 1, count do
        local field = plan[at + 3 * i - 3]
        fields[2 * i - 1] = ARGV[field]
        fields[2 * i] = ARGV[field + 1]
      end
      stored = redis.call('HMGET', key, unpack(fields))
    elseif is_calendar then
      stored = redis.call('HMGET', key, ARGV[plan[at]], ARGV[plan[at] + 1])
    else -- of open purchases nothing is spent
      stored = { false, redis.call('HGET', key, ARGV[plan[at] + 1]) }
    end
    for i = 1, count do
      local amount, maximum = numbers[plan[at + 1]], numbers[plan[at + 2]]
      local spent, reserved = (stored[2 * i - 1] or 0) + 0, (stored[2 * i] or 0) + 0
      if amount ~= 0 and spent + reserved + amount > maximum then
        return nil
      end
      reply[n + 1] = spent
      reply[n + 2] = reserves and reserved + amount or reserved
      n, at = n + 2, at + 3
    end
  end
  return at, levels, filled_at
end

-- Stores the levels that `check_planned` has found. `text` is now.
local function write_planned_levels(plan, levels, filled_at, text)
  for i = 1, plan[1] do
    if levels[i] then
      local key = KEYS[plan[3 * i]]
      redis.call('HSET', key, 'level', levels[i], 'at', text)
      if begins_to_expire(filled_at[i]) then
        redis.call('EXPIRE', key, BUCKET_SECONDS)
      end
    end
  end
end

-- Changes the windows of a plan, whose groups begin at `first`. A group is of windows that change alike:
-- the number of its fields and where each is in ARGV, followed by its change; the number of its windows,
-- and of each its key and where its end is in ARGV (0 = it has none). Adds the new amounts in order to `totals`,
-- if there is such a table: without it, to reserve takes a tenth less time.
local function change_planned_windows(plan, first, totals)
  local n, expiries, call = 0, {}, redis.call
  while plan[first] do
    local count = plan[first]
    local windows = first + count + 1
    local fields, amounts = {}, {}
    for i = 1, count do
      fields[i], amounts[i] = ARGV[plan[first + i]], ARGV[plan[first + i] + 1]
    end
    first = windows + 2 * plan[windows] + 1
    local lowest = tonumber(amounts[1])
    for window = windows + 1, first - 1, 2 do
      local key, ends, may_be_new = KEYS[plan[window]], plan[window + 1], false
      for i = 1, count do
        local total = call('HINCRBY', key, fields[i], amounts[i])
        if total < 0 then -- the store has lost the window, and less is left than is released
          redis.call('HSET', key, fields[i], 0)
          total, may_be_new = 0, true
        elseif i == 1 and total <= lowest then -- a window that was there has more than this change
          may_be_new = true
        end
        if total == 0 and ends == 0 then -- it never expires and would collect fields at zero
          redis.call('HDEL', key, fields[i])
        end
        if totals then
          totals[n + i] = total
        end
      end
      if may_be_new and ends > 0 then
        local expiry = expiries[ends] -- several windows have one, and it takes as long as the call
          or ARGV[ends] + WINDOW_GRACE / SECOND .. '000' -- in milliseconds
        expiries[ends] = expiry
        redis.call('PEXPIREAT', key, expiry, 'NX')
      end
      n = n + count
    end
  end
end
