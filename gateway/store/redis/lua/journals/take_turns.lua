-- KEYS: the account's queue with the tickets of its first keys, the journals of the first tickets, what
-- the worker was told and has reserved, and the workers that are slow.
-- ARGV: account, worker, the account's rate and concurrency ('' = none), the purchases that the worker has
-- seen.
-- Returns the worker's purchases whose turn has come, the number that wait, microseconds until its
-- next turn, and 1 if there are more turns to take, for which it needs further keys.
local HEAD_TIME = 2 * SECOND -- commands.HEAD_SECONDS
local MAX_TAKEN = 50
local MAX_STEPS = 16 -- tickets that are looked ahead
local MAX_READ = 1000 -- tickets that are read: a slow worker may have all that are first
local MAX_ASKED = 200 -- journals that are asked for at a time
local account = open_account(ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4]))
local worker = ARGV[2]
local told = taken_key(account.name, worker)
local slow_key = queue_key('slow', account.name)
local slow = {}
local lacks_keys = false -- after a turn was taken: the rest is for the next command

-- The script has to stop where it needs a key that is not declared. It asks for the key, unless it has
-- taken turns before or has asked often.
local function may_read(name)
  if declared[name] then
    return true
  end
  if not has_written and not has_asked_often() then
    ask_for({ name })
  end
  lacks_keys = true
  return false
end

local function is_waiting(ticket)
  return redis.call('HGET', journal_key(ticket.purchase), 'state') == 'queued'
end

local skipped, read = {}, 0 -- by key, how many of its first tickets are slow workers'

-- The first ticket of a key that is not one of a slow worker.
local function first_ticket(key)
  local from, size = skipped[key] or 0, 1
  while from < MAX_PASSED and read < MAX_READ do
    local name = tickets_key(account, key)
    local members = may_read(name) and redis.call('ZRANGE', name, from, from + size - 1) or {}
    for _, member in ipairs(members) do
      local ticket = read_ticket(member)
      read = read + 1
      if not slow[ticket.worker] and not may_read(journal_key(ticket.purchase)) then
        return nil
      elseif slow[ticket.worker] then
        from = from + 1
      elseif is_waiting(ticket) then
        skipped[key] = from
        return ticket
      else
        leave_queue(account, key, member) -- a gateway of an earlier version has closed its journal
      end
    end
    if #members < size then
      break
    end
    size = 20
  end
  skipped[key] = from
end

-- The first ticket of the key that is next.
local function next_ticket()
  local from, size = 0, 1
  while from < MAX_KEYS and read < MAX_READ do
    local heads = redis.call('ZRANGE', queue_key('heads', account.name), from, from + size - 1)
    for _, head in ipairs(heads) do
      local rank, key = head:match('^(%d+) (.*)$')
      local ticket = first_ticket(key)
      if lacks_keys then
        return nil
      elseif ticket then
        ticket.key, ticket.rank = key, rank
        return ticket
      end
    end
    if #heads < size then
      break
    end
    from, size = from + size, MAX_KEYS - 1
  end
end

local function take(ticket)
  local tag = read_turn(account, ticket.key) + ticket.size
  local held = take_account(account, ticket.images)
  local key = journal_key(ticket.purchase)
  if held then
    local at, windows, consumptions = unpack(redis.call('HMGET', key, 'at', 'windows', 'consumptions'))
    local packed = cjson.decode(consumptions)
    packed[#packed + 1] = held
    local encoded = cjson.encode(packed)
    redis.write('HSET', key, 'consumptions', encoded)
    write_reserved(worker, ticket.purchase, at, encoded, windows)
  end
  redis.write('HSET', key, 'state', 'reserved')
  redis.write('SADD', told, ticket.purchase)
  redis.write('ZREM', tickets_key(account, ticket.key), ticket.member)
  account.count = math.max(0, account.count - 1)
  account.images = math.max(0, account.images - ticket.images)
  account.latest = math.max(account.latest, tag)
  place_key(account, ticket.key, tag, ticket.rank)
end

-- Whether the turn of another worker is to be passed over.
local function is_passed(ticket)
  if account.head ~= ticket.purchase then
    account.head, account.head_since = ticket.purchase, now
  end
  account.head_since = math.min(account.head_since, now) -- the clock may have been set back
  return now - account.head_since >= HEAD_TIME
end

-- Microseconds until this worker's first ticket, as far as `MAX_STEPS` tickets tell. They are tickets
-- of as many keys at most.
local function time_until_own()
  local keys, ahead = {}, 0
  for _, head in ipairs(redis.call('ZRANGE', queue_key('heads', account.name), 0, MAX_STEPS - 1)) do
    local rank, key = head:match('^(%d+) (.*)$')
    table.insert(keys, { tag = read_turn(account, key), rank = rank, name = key, next = 0 })
  end
  -- The key's next ticket that is none of a slow worker, among as many as are looked ahead.
  local function advance(key)
    key.ticket = nil
    while not key.ticket and key.next < MAX_STEPS do
      local name = tickets_key(account, key.name)
      local member = may_read(name) and redis.call('ZRANGE', name, key.next, key.next)[1]
      local ticket = member and read_ticket(member)
      key.next = member and key.next + 1 or MAX_STEPS
      if ticket and not slow[ticket.worker] then
        key.ticket, key.ends = ticket, key.tag + ticket.size
      end
    end
  end
  for _, key in ipairs(keys) do
    advance(key)
  end
  for _ = 1, MAX_STEPS do
    local best
    for _, key in ipairs(keys) do
      if key.ticket and (not best or key.ends < best.ends
          or (key.ends == best.ends and key.rank < best.rank)) then
        best = key
      end
    end
    if not best then
      return 0
    end
    if best.ticket.worker == worker then
      return time_until(account, best.ticket.images, ahead)
    end
    ahead, best.tag = ahead + best.ticket.images, best.ends
    advance(best)
  end
  return time_until(account, 1, ahead)
end

-- The tickets of the first keys, and the journals of the first tickets.
add_needed = function(names)
  local heads = redis.call('ZRANGE', queue_key('heads', account.name), 0, MAX_KEYS - 1)
  for i, head in ipairs(heads) do
    heads[i] = tickets_key(account, head:match('^%d+ (.*)$'))
    names[#names + 1] = heads[i]
  end
  for _, name in ipairs(heads) do
    if declared[name] then
      local most = math.min(MAX_TAKEN, math.ceil(MAX_ASKED / #heads))
      for _, member in ipairs(redis.call('ZRANGE', name, 0, most - 1)) do
        names[#names + 1] = journal_key(read_ticket(member).purchase)
      end
    end
  end
end

for _, name in ipairs(redis.call('SMEMBERS', slow_key)) do
  slow[name] = name ~= worker
end
for _ = 1, MAX_TAKEN do
  local ticket = next_ticket()
  if not ticket or not may_go(account, ticket.images) then
    break
  elseif ticket.worker == worker then
    take(ticket)
  elseif is_passed(ticket) then
    slow[ticket.worker] = true
    redis.write('SADD', slow_key, ticket.worker)
    redis.write('EXPIRE', slow_key, QUEUE_SECONDS)
  else
    break
  end
end
if redis.call('EXISTS', queue_key('heads', account.name)) == 0 then
  account.count, account.images = 0, 0 -- also if the store has lost writes
  redis.write('DEL', slow_key)
end
local next_in = time_until_own()
write_many('SREM', told, ARGV, 5)
redis.write('SREM', slow_key, worker)
write_windows()
write_account(account)
redis.write('EXPIRE', told, QUEUE_SECONDS)
return { redis.call('SMEMBERS', told), account.count, next_in, lacks_keys and 1 or 0 }
