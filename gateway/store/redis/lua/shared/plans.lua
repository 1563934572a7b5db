-- Plans of purchases, as `commands.plans` makes them. KEYS and ARGV are those of the plan, so nothing
-- here needs to be checked with `declared`, which comes behind it.

local CLOSED_SECONDS = 7 * 86400 -- commands.CLOSED_JOURNAL_SECONDS
local NO_WINDOWS = '{"subjects":[],"amounts":{},"windows":[]}'

-- Changes the windows of a plan, whose groups begin at `first`. Returns the new amounts in order.
local function change_planned_windows(plan, first)
  local totals, n = {}, 0
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
      local key, ends, is_lost = KEYS[plan[window]], plan[window + 1], false
      for i = 1, count do
        local total = redis.call('HINCRBY', key, fields[i], amounts[i])
        if total < 0 then -- the store has lost the window, and less is left than is released
          redis.call('HSET', key, fields[i], 0)
          total, is_lost = 0, true
        end
        if total == 0 and ends == 0 then -- it never expires and would collect fields at zero
          redis.call('HDEL', key, fields[i])
        end
        totals[n + i] = total
      end
      -- In a window that was there, the first amount is larger than its change.
      if ends > 0 and count > 0 and (is_lost or totals[n + 1] <= lowest) then
        redis.call('PEXPIREAT', key, milliseconds(ARGV[ends] * SECOND + WINDOW_GRACE), 'NX')
      end
      n = n + count
    end
  end
  return totals
end
