-- `admit` by the plan of the gateway: what follows the expected records in ARGV. It writes only if the
-- records are as expected, the plan holds and everything fits; else the script goes on without it.
--
-- ARGV     `first`… the consumptions as JSON, which are shadows, the plan, its doubles, and of each
--          unit the fields with its spent and its reserved amount
-- doubles  1 and 2 when the day begins and ends, 3… amount and maximum of each counter
-- plan     1 and 2 how many buckets and windows have counters, 3… those (see `check_planned`)
--
-- Returns -2, now, and two numbers of each counter, as `check_planned` adds them.

local function admit_as_planned(plan, expected, doubles_at)
  local seconds, numbers = now / SECOND, unpack_numbers(ARGV[doubles_at])
  if seconds < numbers[1] or seconds >= numbers[2] then
    return nil
  end
  for i = 1, expected do
    if (redis.call('HGET', KEYS[i], ARGV[2 * i + 1]) or '') ~= ARGV[2 * i + 2] then
      return nil
    end
  end
  local reply = { -2, now }
  local fits, levels, filled_at = check_planned(plan, numbers, reply, false)
  if not fits then
    return nil
  end
  write_planned_levels(plan, levels, filled_at, now_digits())
  return reply
end

local expected = tonumber(ARGV[2])
local first = 3 + 2 * expected
if ARGV[first + 2] ~= '' then
  local plan = { string.byte(ARGV[first + 2], 1, -1) }
  local reply = admit_as_planned(plan, expected, first + 3)
  if reply then
    return reply
  end
end
