-- KEYS: books. ARGV: purchase, presumed, correct, has a record (each '1' or '0'), the record,
-- then unit and amount of the charge, ….
-- Answers status, presumed (1 or 0), the charge as unit, amount, … and the states.
local purchase, presumes, corrects = ARGV[1], ARGV[2] == '1', ARGV[3] == '1'
local record = ARGV[4] == '1' and ARGV[5]
local charge = read_charge(ARGV, 6)
local key = journal_key(purchase)

local function show(status, journal)
  local charged = {}
  for unit, amount in pairs(unpack_charge(journal)) do
    table.insert(charged, unit)
    table.insert(charged, amount)
  end
  local shown = states(reread_takes(cjson.decode(journal.takes)))
  return { status, tonumber(journal.presumed), charged, shown }
end

-- The writes that closing and correcting share; `before` is what was charged so far.
local function charge_journal(journal, windows, before)
  for _, window in ipairs(windows) do
    local difference = (charge[window.unit] or 0) - (before[window.unit] or 0)
    if window.counts then
      move(window.key, window.unit .. ':spent', difference, window.ends)
    end
  end
  limit_lives()
  if record then
    append_record(ledger_day(), record)
  end
  redis.call('HSET', key, 'state', 'settled', 'charged', journal.charged,
    'presumed', journal.presumed)
  redis.call('EXPIRE', key, CLOSED_SECONDS)
end

local function give_back(windows)
  for _, window in ipairs(windows) do
    move(window.key, window.unit .. ':reserved', -window.amount, window.ends)
  end
end

local function close(journal)
  journal.charged, journal.presumed = pack_charge(charge), presumes and '1' or '0'
  local windows = unpack_windows(cjson.decode(journal.takes))
  give_back(windows)
  charge_journal(journal, windows, {})
  redis.call('HDEL', key, 'payload')
  redis.call('ZREM', open_key(journal.worker), purchase)
  return show('settled', journal)
end

local function correct(journal)
  local before = unpack_charge(journal)
  journal.charged, journal.presumed = pack_charge(charge), '0'
  charge_journal(journal, unpack_windows(cjson.decode(journal.takes)), before)
  return show('corrected', journal)
end

local journal = read_hash(key)
if not journal then
  redis.call('HSET', key, 'state', 'settled', 'worker', '', 'takes', '[]',
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
return show('already', journal)
