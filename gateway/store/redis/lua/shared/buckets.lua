-- What counters are measured in.
--
-- A bucket's level is stored in 1/60,000,000 of a unit: then it gains exactly `maximum` of these in
-- each microsecond, and nothing is ever rounded.

local UNIT = 60000000
local MINUTE = 60 * SECOND
local BUCKET_SECONDS = 120 -- an untouched bucket is full after a minute and need not be stored
local EXPIRY_STEP = 30 * SECOND
local WINDOW_GRACE = 7 * 86400 * SECOND -- commands.WINDOW_GRACE_SECONDS

-- The level now of a bucket whose `level` and `at` are stored.
local function refilled(stored, maximum)
  local capacity = maximum * UNIT
  if not stored[1] then
    return capacity
  end
  -- A bucket from the future, of a clock that was set back, refills from now on.
  local elapsed = math.max(0, now - stored[2])
  return elapsed < MINUTE and math.min(capacity, stored[1] + elapsed * maximum) or capacity
end

-- What is missing in a bucket, and in how many microseconds it is full.
local function level_state(level, maximum)
  local missing = maximum * UNIT - level
  return math.ceil(missing / UNIT), missing > 0 and math.ceil(missing / maximum) or 0
end

-- Whether a bucket that was filled at this time must be told to expire, now that its level changes. Once
-- in each half minute is enough: it stays for at least a minute and a half after its last change.
local function begins_to_expire(filled_at)
  return not filled_at or math.floor(filled_at / EXPIRY_STEP) ~= math.floor(now / EXPIRY_STEP)
end
