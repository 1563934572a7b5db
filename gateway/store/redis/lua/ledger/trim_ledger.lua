-- KEYS: the checkpoint of the totals, the ledger, the days, and the streams of the oldest ones.
-- ARGV: how long charged and free records are kept; the maximum bytes of free records, and the bytes above
-- which unfolded ones are removed too; the limit; the last folded position as milliseconds and count, if
-- it is not the checkpoint.
-- Returns how many records were removed, how many of them were not folded, 1 if the limit was reached
-- or the streams of further days have to be declared, and the bytes of the free records.
-- A full server lets this script remove, as it never begins with a write that needs memory.
local max_free, max_unfolded = tonumber(ARGV[3]), tonumber(ARGV[4])
local left = tonumber(ARGV[5])
local folded_ms, folded_count = tonumber(ARGV[6]), tonumber(ARGV[7])
if not folded_ms then
  folded_ms, folded_count = parse_id(checkpoint():match('/(.*)$') or '0-0')
end
local FIRST_PAGE, PAGE = 1, 250

local folded_day = day_of_ms(folded_ms)
local today = day_of_ms((read_ledger_end()))
local free_bytes = tonumber(redis.call('HGET', LEDGER, 'free') or 0)
local removed, unfolded, lacks_keys = 0, 0, false

local function count_bytes(class, day, bytes)
  if class == 'free' and bytes > 0 then
    free_bytes = free_bytes - bytes
    redis.write('HINCRBY', LEDGER, 'free', -bytes)
    redis.write('HINCRBY', LEDGER, 'free:' .. day, -bytes)
  end
end

local function bytes_of_day(class, day)
  return class == 'free' and tonumber(redis.call('HGET', LEDGER, 'free:' .. day) or 0) or 0
end

-- Remembers the last record that was removed: what the ledger cannot prove, and reports cannot read,
-- any more.
local function note_removed(class, id)
  redis.write('HSET', LEDGER, removed_field(class), id)
end

local function remove_day(class, day)
  local bytes = bytes_of_day(class, day)
  local last = redis.call('XREVRANGE', ledger_key(class, day), '+', '-', 'COUNT', 1)[1]
  redis.write('UNLINK', ledger_key(class, day))
  redis.write('ZREM', days_key(class), day)
  count_bytes(class, day, bytes)
  if last then
    note_removed(class, last[1])
  end
  if class == 'free' then
    redis.write('HDEL', LEDGER, 'free:' .. day)
  end
end

local function is_folded(id)
  local ms, count = parse_id(id)
  return not is_later(ms, count, folded_ms, folded_count)
end

-- Whether a record has to be removed after those before it, which have so many bytes.
local function is_due(class, id, bytes_before, cutoff_ms)
  local bytes = free_bytes - bytes_before
  if not is_folded(id) then
    return class == 'free' and bytes > max_unfolded
  end
  return parse_id(id) <= cutoff_ms or (class == 'free' and bytes > max_free)
end

-- Removes due records of a page from a day's start. Returns whether the whole page was due, and its
-- size.
local function remove_page(class, day, cutoff_ms, page_size)
  local key = ledger_key(class, day)
  local page = redis.call('XRANGE', key, '-', '+', 'COUNT', math.min(page_size, left))
  local bytes = { [0] = 0 } -- by number of records: the bytes of so many
  for i, item in ipairs(page) do
    bytes[i] = bytes[i - 1] + #item[2][2] + RECORD_OVERHEAD
  end
  -- From the end, because mostly the whole page is due. A record is due only if those before it are.
  local count = #page
  while count > 0 and not is_due(class, page[count][1], bytes[count - 1], cutoff_ms) do
    count = count - 1
  end
  if count > 0 then
    local last_id = page[count][1]
    local ms, n = parse_id(last_id)
    redis.write('XTRIM', key, 'MINID', '=', digits(ms) .. '-' .. digits(n + 1))
    count_bytes(class, day, bytes[count])
    note_removed(class, last_id)
    removed, left = removed + count, left - count
    local folded = count
    while folded > 0 and not is_folded(page[folded][1]) do
      folded = folded - 1
    end
    unfolded = unfolded + count - folded
  end
  return count == #page, #page
end

local function is_day_due(class, day, cutoff_day)
  if day >= folded_day or day >= today then
    return false
  end
  local keeps = free_bytes - bytes_of_day(class, day)
  return day < cutoff_day or (class == 'free' and keeps > max_free)
end

local function trim(class, keep)
  local cutoff = math.max(0, now - keep)
  local cutoff_ms, cutoff_day = math.floor(cutoff / 1000), day_of_ms(math.floor(cutoff / 1000))
  local day = redis.call('ZRANGE', days_key(class), 0, 0)[1]
  local page_size = FIRST_PAGE -- mostly not even the oldest record is due
  while day and left > 0 do
    if not declared[ledger_key(class, day)] then
      lacks_keys = true
      return
    elseif is_day_due(class, day, cutoff_day) then
      removed, left = removed + redis.call('XLEN', ledger_key(class, day)), left - 1
      remove_day(class, day)
    else
      local is_whole, size = remove_page(class, day, cutoff_ms, page_size)
      page_size = PAGE
      if not is_whole then
        return
      end
      if size == 0 then
        -- The stream of the last day stays, because the next record belongs to it.
        if day >= today then
          return
        end
        remove_day(class, day)
      end
    end
    day = redis.call('ZRANGE', days_key(class), 0, 0)[1]
  end
end

local oldest = {}
for _, class in ipairs(CLASSES) do
  for _, day in ipairs(redis.call('ZRANGE', days_key(class), 0, MAX_ASKED_DAYS - 1)) do
    oldest[#oldest + 1] = ledger_key(class, day)
  end
end
need(oldest)
trim('charged', tonumber(ARGV[1]))
trim('free', tonumber(ARGV[2]))
return { removed, unfolded, (left <= 0 or lacks_keys) and 1 or 0, free_bytes }
