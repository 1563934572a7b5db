-- KEYS: books. ARGV: purchase, presumed, correct, has a record (each '1' or '0'), the record, the
-- calendar, the attempt, subjects, amounts and windows as JSON for a purchase without a journal
-- ('' = it is charged nothing), its record, the names of running totals as JSON, the saved
-- micro-dollars, then the charge as unit, amount, ….
-- Returns status, presumed (1 or 0), the charge as unit, amount, …, the states, now, the attempt that
-- made the charge, the charge before a correction as unit, amount, … ('' = none), and whether there
-- was no reservation (1 or 0).
local purchase, is_presumed, corrects = ARGV[1], ARGV[2] == '1', ARGV[3] == '1'
local record = ARGV[4] == '1' and ARGV[5]
local attempt, scopes_if_lost, record_if_lost = ARGV[7], ARGV[8], ARGV[9]
local totals, saved = cjson.decode(ARGV[10]), tonumber(ARGV[11])
local charge = read_charge(ARGV, 12)
local key = journal_key(purchase)
if not choose_windows(ARGV[6]) then
  return wrong_calendar()
end

local function flatten_charge(charged)
  local flat = {}
  for unit, amount in pairs(charged) do
    table.insert(flat, unit)
    table.insert(flat, amount)
  end
  return flat
end

local function result(status, journal)
  local before = journal.corrected_from
  return {
    status, tonumber(journal.presumed), flatten_charge(unpack_charge(journal.charged)),
    states(reread_consumptions(cjson.decode(journal.consumptions))), now,
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

-- The writes that closing and correcting share; `before` is the charge so far.
local function write_charge(journal, counters, before)
  for _, counter in ipairs(counters) do
    if counter.is_charged then
      local difference = (charge[counter.unit] or 0) - (before[counter.unit] or 0)
      add_to_window(counter.window, counter.unit, 'spent', difference)
    end
  end
  write_windows()
  if record then
    append_record(record, moves(before))
  end
  journal.attempt = attempt
  redis.call('HSET', key, 'state', 'settled', 'charged', journal.charged,
    'presumed', journal.presumed, 'attempt', attempt)
  -- A correction from a charge to nothing is kept long too: its purchase is not free to make.
  local is_free = not is_presumed and not moves({}) and not moves(before)
  redis.call('EXPIRE', key, is_free and FREE_SECONDS or CLOSED_SECONDS)
  if is_free then
    -- Small, because a client can make many of them: only a correction needs the rest.
    redis.call('HDEL', key, 'windows', 'worker', 'at')
    redis.call('HSET', key, 'consumptions', '[]')
  elseif journal.presumed == '0' then
    redis.call('HSET', key, 'windows', NO_WINDOWS) -- nothing corrects a final charge
  end
end

local function counters_of(journal)
  return reserved_counters(cjson.decode(journal.consumptions), cjson.decode(journal.windows))
end

local function close(journal)
  journal.charged, journal.presumed = pack_charge(charge), is_presumed and '1' or '0'
  local counters = counters_of(journal)
  for _, counter in ipairs(counters) do
    add_to_window(counter.window, counter.unit, 'reserved', -counter.amount)
  end
  write_charge(journal, counters, {})
  move_totals(charge.usd_micros or 0, saved)
  leave_place(journal, purchase)
  redis.call('HDEL', key, 'payload', 'place')
  redis.call('ZREM', open_key(journal.worker), purchase)
  return result('settled', journal)
end

local function correct(journal)
  local before = unpack_charge(journal.charged)
  journal.corrected_from = journal.charged
  journal.charged, journal.presumed = pack_charge(charge), '0'
  write_charge(journal, counters_of(journal), before)
  move_totals((charge.usd_micros or 0) - (before.usd_micros or 0), 0)
  redis.call('HSET', key, 'corrected_from', journal.corrected_from)
  return result('corrected', journal)
end

local journal = read_hash(key)
if not journal then
  local is_charged = scopes_if_lost ~= ''
  journal = {
    worker = '', consumptions = '[]', unreserved = is_charged and '1' or '0',
    windows = is_charged and scopes_if_lost or NO_WINDOWS,
  }
  redis.call('HSET', key, 'worker', '', 'consumptions', '[]', 'windows', journal.windows,
    'unreserved', journal.unreserved)
  if is_charged then
    record = record_if_lost
    return close(journal)
  end
  redis.call('HSET', key, 'state', 'settled', 'charged', '[]', 'presumed', '0')
  redis.call('EXPIRE', key, FREE_SECONDS)
  return { 'unknown', 0, {}, {}, now, '', '', 0 }
end
if journal.state ~= 'settled' then
  return close(journal)
end
if corrects and journal.presumed == '1' then
  return correct(journal)
end
return result('already', journal)
