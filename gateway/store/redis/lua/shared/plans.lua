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
    local last = windows + 2 * plan[windows]
    -- In a window that was there, the first amount is larger than its change.
    local lowest = count > 0 and tonumber(ARGV[plan[first + 1] + 1])
    for window = windows + 1, count > 0 and last or 0, 2 do
      local key, ends = plan[window], plan[window + 1]
      for i = first + 1, first + count do
        local field = plan[i]
        local total = redis.call('HINCRBY', KEYS[key], ARGV[field], ARGV[field + 1])
        if i == first + 1 and ends > 0 and total <= lowest then
          redis.call('PEXPIREAT', KEYS[key], milliseconds(ARGV[ends] * SECOND + WINDOW_GRACE), 'NX')
        end
        -- If the store has lost the window, less may be left of an amount than is released.
        if total < 0 then
          redis.call('HSET', KEYS[key], ARGV[field], 0)
          total = 0
        end
        if total == 0 and ends == 0 then -- it never expires and would collect fields at zero
          redis.call('HDEL', KEYS[key], ARGV[field])
        end
        n = n + 1
        totals[n] = total
      end
    end
    first = last + 1
  end
  return totals
end
