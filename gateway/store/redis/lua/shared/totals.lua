-- Totals. A period is one hash: row → its slots, and '#' and a group → its number of rows. So it is
-- removed as a whole, and a row's dimensions are stored once for all its slots.
--
-- The slots of a row are text, '<slot> <name><number>…;<slot> …', which takes some 20 bytes a slot.

local CHECKPOINT = BOOKS .. 'totals-checkpoint' -- string: a position of the ledger

local function totals_key(period)
  return BOOKS .. 'totals:' .. period
end

-- A set: the groups that have as many rows as they may have.
local function full_groups_key(period)
  return BOOKS .. 'totals-full:' .. period
end

-- A sorted set: the periods of a kind by their end.
local function periods_key(kind)
  return BOOKS .. 'totals-periods:' .. kind
end

local function checkpoint()
  return redis.call('GET', CHECKPOINT) or ''
end
