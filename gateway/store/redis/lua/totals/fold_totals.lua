-- KEYS: the checkpoint, and of each period its rows, its full groups and the periods of its kind.
-- ARGV: the expected checkpoint, the new one, the number of periods, kind, name and end of each
-- period, then index of the period, slot, group, row, other row and sums of each increment.
-- Returns 1, or 0 if the checkpoint is another one.
local MAX_GROUP_ROWS = 1000 -- commands.MAX_GROUP_ROWS
local FIRST = 4 + 3 * tonumber(ARGV[3])

if checkpoint() ~= ARGV[1] then
  return 0
end

local function period_name(index)
  return ARGV[4 + 3 * tonumber(index) + 1]
end

-- Adds '<name><number>…' to '<name><number>…'.
local function merge(before, added)
  local sums, names = {}, {}
  for _, text in ipairs({ before, added }) do
    for name, number in string.gmatch(text, '([a-z_]+)(%-?%d+)') do
      if not sums[name] then
        table.insert(names, name)
      end
      sums[name] = (sums[name] or 0) + tonumber(number)
    end
  end
  local parts = {}
  for i, name in ipairs(names) do
    parts[i] = name .. digits(sums[name])
  end
  return table.concat(parts)
end

local function add_to_slot(slots, slot, added)
  local text = ';' .. slots .. ';'
  local _, head = string.find(text, ';' .. slot .. ' ', 1, true)
  if not head then
    return (slots == '' and '' or slots .. ';') .. slot .. ' ' .. added
  end
  local tail = string.find(text, ';', head, true)
  local sums = merge(string.sub(text, head + 1, tail - 1), added)
  return string.sub(text, 2, head) .. sums .. string.sub(text, tail, -2)
end

-- The row of an increment: a new one only if its group has room.
local function choose_row(key, period, group, row, other)
  if redis.call('HEXISTS', key, row) == 1 then
    return row
  end
  if redis.call('SISMEMBER', full_groups_key(period), group) == 1 then
    return other
  end
  if redis.write('HINCRBY', key, '#' .. group, 1) >= MAX_GROUP_ROWS then
    redis.write('SADD', full_groups_key(period), group)
  end
  return row
end

redis.write('SET', CHECKPOINT, ARGV[2])
for i = 4, FIRST - 1, 3 do
  redis.write('ZADD', periods_key(ARGV[i]), ARGV[i + 2], ARGV[i + 1])
end
for i = FIRST, #ARGV, 6 do
  local period = period_name(ARGV[i])
  local key = totals_key(period)
  local row = choose_row(key, period, ARGV[i + 2], ARGV[i + 3], ARGV[i + 4])
  local slots = redis.call('HGET', key, row) or ''
  redis.write('HSET', key, row, add_to_slot(slots, ARGV[i + 1], ARGV[i + 5]))
end
return 1
