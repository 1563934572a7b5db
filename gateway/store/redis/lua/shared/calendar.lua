-- UTC calendar dates.

-- Year, month and day of a count of days since 1970-01-01, by arithmetic in eras of 400 years
-- that begin in March (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
local function civil_from_days(days)
  local shifted = days + 719468
  local era = math.floor(shifted / 146097)
  local day_of_era = shifted - era * 146097
  local year_of_era = math.floor((day_of_era - math.floor(day_of_era / 1460)
    + math.floor(day_of_era / 36524) - math.floor(day_of_era / 146096)) / 365)
  local day_of_year = day_of_era
    - (365 * year_of_era + math.floor(year_of_era / 4) - math.floor(year_of_era / 100))
  local march_month = math.floor((5 * day_of_year + 2) / 153)
  local day = day_of_year - math.floor((153 * march_month + 2) / 5) + 1
  local month = march_month < 10 and march_month + 3 or march_month - 9
  local year = year_of_era + era * 400 + (month <= 2 and 1 or 0)
  return year, month, day
end

local day_names = {} -- by the count of days: most scripts ask for the same one again and again

-- The UTC day of a time: yyyy-mm-dd.
local function day_of(time)
  local days = math.floor(time / (86400 * SECOND))
  local name = day_names[days]
  if not name then
    name = string.format('%04d-%02d-%02d', civil_from_days(days))
    day_names[days] = name
  end
  return name
end
