-- Refusals that wait for the end of their minute. A row is `<minute> <key> <reason>`.

-- hash: `count <row>`, `record <row>`, and `rows <minute> <key>`, how many rows the key has
local REFUSALS = BOOKS .. 'refusals'
local REFUSAL_ROWS = BOOKS .. 'refusal-rows' -- list: the rows in the order of their first refusal
local MAX_REASONS = 20 -- commands.MAX_REFUSAL_REASONS

local minute = digits(math.floor(now / (60 * SECOND)))

local function has_row(row)
  return redis.call('HEXISTS', REFUSALS, 'record ' .. row) == 1
end

local function count_refusals(key, reason, count, record, other)
  local of_key = minute .. ' ' .. key
  local row = of_key .. ' ' .. reason
  local rows = tonumber(redis.call('HGET', REFUSALS, 'rows ' .. of_key) or 0)
  if rows >= MAX_REASONS and not has_row(row) then
    row, record = of_key .. ' ', other
  end
  if not has_row(row) then
    redis.write('HSET', REFUSALS, 'record ' .. row, record, 'rows ' .. of_key, rows + 1)
    redis.write('RPUSH', REFUSAL_ROWS, row)
  end
  redis.write('HINCRBY', REFUSALS, 'count ' .. row, count)
end
