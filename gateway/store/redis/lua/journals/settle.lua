-- KEYS: the journal and what it holds, the running totals, the ledger.
-- ARGV: purchase, presumed, correct (each '1' or '0'), has a record ('1' or '0'; '2' = the record of a
-- purchase without a journal differs only in how it begins), the record, the calendar, the attempt,
-- subjects, amounts and windows as JSON for a purchase without a journal ('' = it is charged nothing), its
-- record ('2': what it has instead of the first byte), the names of running totals as JSON, the saved
-- micro-dollars, the charge as JSON (unit, amount, …), and a plan with what belongs to it ('' = none).
-- Returns status, presumed (1 or 0), the charge as unit, amount, …, the states, now, the attempt that
-- made the charge, the charge before a correction as unit, amount, … ('' = none), and whether there
-- was no reservation (1 or 0).
local purchase, is_presumed, corrects = ARGV[1], ARGV[2] == '1', ARGV[3] == '1'
local record = ARGV[4] ~= '0' and ARGV[5]
local attempt, scopes_if_lost, record_if_lost = ARGV[7], ARGV[8], ARGV[9]
if ARGV[4] == '2' then
  record_if_lost = record_if_lost .. string.sub(record, 2)
end
local totals, saved = cjson.decode(ARGV[10]), tonumber(ARGV[11])
local charge = unpack_charge(ARGV[12])
local key = journal_key(purchase)
if not choose_windows(ARGV[6]) then
  return wrong_calendar()
end

local journal = read_hash(key)
local is_lost = journal == nil

local function flatten_charge(charged)
  local flat = {}
  for unit, amount in pairs(charged) do
    local n = #flat
    flat[n + 1], flat[n + 2] = unit, amount
  end
  return flat
end

-- `consumptions` are those of the journal, as `reread_consumptions` returns them.
local function result(status, journal, consumptions)
  local before = journal.corrected_from
  return {
    status, tonumber(journal.presumed), flatten_charge(unpack_charge(journal.charged)),
    states(consumptions), now,
    journal.attempt or '', before and flatten_charge(unpack_charge(before)) or '',
    tonumber(journal.unreserved or 0),
  }
end

local function move_totals(difference, saved_now)
  for _, name in ipairs(totals) do
    add_to_total(name, difference < 0 and 'corrected' or 'charged', math.abs(difference))
    add_to_total(name, 'saved', saved_now)
  end
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

-- The writes that closing and correcting share; `windows` and `amounts` are what the purchase has
-- reserved, which closing releases; `before` is the charge so far, and `end_of_ledger` where the record
-- belongs.
local function write_charge(journal, windows, amounts, before, end_of_ledger)
  local releases = journal.state ~= 'settled'
  change_windows(windows, amounts, function(of_window, window)
    local changes = {}
    for unit, amount in pairs(of_window) do
      if releases and tonumber(amount) ~= 0 then
        changes[#changes + 1] = unit .. ':reserved'
        changes[#changes + 1] = negated(amount)
      end
      local difference = (charge[unit] or 0) - (before[unit] or 0)
      -- The concurrency window only counts reserved amounts.
      if difference ~= 0 and window.ends then
        changes[#changes + 1] = unit .. ':spent'
        changes[#changes + 1] = digits(difference)
      end
    end
    return changes
  end)
  write_windows()
  if record then
    append_records({ record }, moves(before), end_of_ledger)
  end
  journal.attempt = attempt
  local is_final = journal.presumed == '0' -- nothing corrects a final charge
  redis.write('HSET', key, 'state', 'settled', 'charged', journal.charged, 'presumed', journal.presumed,
    'attempt', attempt, 'windows', is_final and NO_WINDOWS or journal.windows)
  -- A correction from a charge to nothing is kept long too: its purchase is not free to make.
  local is_free = not is_presumed and not moves({}) and not moves(before)
  redis.write('EXPIRE', key, is_free and FREE_SECONDS or CLOSED_SECONDS)
  if is_free then
    -- Small, because a client can make many of them: only a correction needs the rest.
    redis.write('HDEL', key, 'windows', 'worker', 'at')
    redis.write('HSET', key, 'consumptions', '[]')
  end
end

-- Reads what closing and correcting need, before anything is written. Returns the windows and their
-- amounts, the journal's consumptions, and where the record belongs in the ledger.
local function read_holdings(journal, before)
  local consumptions, scopes = cjson.decode(journal.consumptions), cjson.decode(journal.windows)
  add_needed = function(names)
    add_reserved_keys(names, consumptions, scopes)
    add_journal_keys(names, journal)
  end
  local windows, amounts = reserved_amounts(consumptions, scopes)
  return windows, amounts, reread_consumptions(consumptions),
    record and prepare_append(1, moves(before))
end

local function close(journal)
  journal.charged, journal.presumed = ARGV[12], is_presumed and '1' or '0'
  local windows, amounts, consumptions, end_of_ledger = read_holdings(journal, {})
  need_journal(journal)
  if is_lost then
    redis.write('HSET', key, 'worker', '', 'consumptions', '[]', 'windows', journal.windows,
      'unreserved', journal.unreserved)
  end
  write_charge(journal, windows, amounts, {}, end_of_ledger)
  move_totals(charge.usd_micros or 0, saved)
  leave_place(journal, purchase)
  redis.write('HDEL', key, 'payload', 'place')
  if not is_lost then
    redis.write('ZREM', open_key(journal.worker), purchase)
    redis.write('HDEL', reserved_key(journal.worker), purchase)
  end
  return result('settled', journal, consumptions)
end

local function correct(journal)
  local before = unpack_charge(journal.charged)
  journal.corrected_from = journal.charged
  journal.charged, journal.presumed = ARGV[12], '0'
  local windows, amounts, consumptions, end_of_ledger = read_holdings(journal, before)
  write_charge(journal, windows, amounts, before, end_of_ledger)
  move_totals((charge.usd_micros or 0) - (before.usd_micros or 0), 0)
  redis.write('HSET', key, 'corrected_from', journal.corrected_from)
  return result('corrected', journal, consumptions)
end

if is_lost then
  local is_charged = scopes_if_lost ~= ''
  journal = {
    worker = '', consumptions = '[]', unreserved = is_charged and '1' or '0',
    windows = is_charged and scopes_if_lost or NO_WINDOWS,
  }
  if is_charged then
    record = record_if_lost
    return close(journal)
  end
  redis.write('HSET', key, 'worker', '', 'consumptions', '[]', 'windows', NO_WINDOWS, 'unreserved', '0',
    'state', 'settled', 'charged', '[]', 'presumed', '0')
  redis.write('EXPIRE', key, FREE_SECONDS)
  return { 'unknown', 0, {}, {}, now, '', '', 0 }
end
if journal.state ~= 'settled' then
  return close(journal)
end
if corrects and journal.presumed == '1' then
  return correct(journal)
end
return result('already', journal, reread_consumptions(cjson.decode(journal.consumptions)))
