-- KEYS: books. ARGV: purchase, presumed, correct, has a record (each '1' or '0'), the record, then
-- the charge as unit, amount, ….
-- Returns status, presumed (1 or 0), the charge as unit, amount, … and the states.
local purchase, is_presumed, corrects = ARGV[1], ARGV[2] == '1', ARGV[3] == '1'
local record = ARGV[4] == '1' and ARGV[5]
local charge = read_charge(ARGV, 6)
local key = journal_key(purchase)

local function result(status, journal)
  local charged = {}
  for unit, amount in pairs(unpack_charge(journal)) do
    table.insert(charged, unit)
    table.insert(charged, amount)
  end
  local counters = reread_consumptions(cjson.decode(journal.consumptions))
  return { status, tonumber(journal.presumed), charged, states(counters) }
end

-- Whether the charge differs from `before` in any unit: a record of such a settlement is charged.
local function moves(before)
  for unit, amount in pairs(charge) do
    if amount ~= (before[unit] or 0) then
      return true
    end
  end
  for unit, amount in pairs(before) do
    if amount ~= (charge[unit] or 0) then
      return true
    end
  end
  return false
end

-- The writes that closing and correcting share; `before` is the charge so far.
local function write_charge(journal, windows, before)
  for _, window in ipairs(windows) do
    local difference = (charge[window.unit] or 0) - (before[window.unit] or 0)
    if window.is_charged then
      add_to_window(window.key, window.unit .. ':spent', difference, window.ends)
    end
  end
  expire_windows()
  if record then
    append_record(record, moves(before))
  end
  redis.call('HSET', key, 'state', 'settled', 'charged', journal.charged,
    'presumed', journal.presumed)
  redis.call('EXPIRE', key, CLOSED_SECONDS)
end

local function close(journal)
  journal.charged, journal.presumed = pack_charge(charge), is_presumed and '1' or '0'
  local windows = unpack_windows(cjson.decode(journal.consumptions))
  for _, window in ipairs(windows) do
    add_to_window(window.key, window.unit .. ':reserved', -window.amount, window.ends)
  end
  write_charge(journal, windows, {})
  redis.call('HDEL', key, 'payload')
  redis.call('ZREM', open_key(journal.worker), purchase)
  return result('settled', journal)
end

local function correct(journal)
  local before = unpack_charge(journal)
  journal.charged, journal.presumed = pack_charge(charge), '0'
  write_charge(journal, unpack_windows(cjson.decode(journal.consumptions)), before)
  return result('corrected', journal)
end

local journal = read_hash(key)
if not journal then
  redis.call('HSET', key, 'state', 'settled', 'worker', '', 'consumptions', '[]',
    'charged', pack_charge({}), 'presumed', '0')
  redis.call('EXPIRE', key, CLOSED_SECONDS)
  return { 'unknown', 0, {}, {} }
end
if journal.state ~= 'settled' then
  return close(journal)
end
if corrects and journal.presumed == '1' then
  return correct(journal)
end
return result('already', journal)
