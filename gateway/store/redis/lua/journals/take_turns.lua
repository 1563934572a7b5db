-- KEYS: books. ARGV: account, worker, the account's rate and concurrency ('' = none), the purchases
-- that the worker has seen.
-- Returns the worker's purchases whose turn has come, the number that wait, and microseconds until its
-- next turn.
local HEAD_TIME = 2 * SECOND -- commands.HEAD_SECONDS
local MAX_TAKEN = 100
local MAX_STEPS = 16 -- tickets that are looked ahead
local account = open_account(ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4]))
local worker = ARGV[2]
local told = taken_key(account.name, worker)
local slow_key = queue_key('slow', account.name)
local slow = {}

local function is_waiting(ticket)
  return redis.call('HGET', journal_key(ticket.purchase), 'state') == 'queued'
end

-- The first ticket of a key that is not one of a slow worker.
local function first_ticket(key)
  for _, member in ipairs(redis.call('ZRANGE', tickets_key(account, key), 0, MAX_PASSED - 1)) do
    local ticket = read_ticket(member)
    if not slow[ticket.worker] then
      if is_waiting(ticket) then
        return ticket
      end
      leave_queue(account, key, member) -- a gateway of an earlier version has closed its journal
    end
  end
end

-- The keys that are next, each with its tag, rank and first ticket, in the order of the queue.
local function next_ticket()
  for _, head in ipairs(redis.call('ZRANGE', queue_key('heads', account.name), 0, MAX_KEYS - 1)) do
    local rank, key = head:match('^(%d+) (.*)$')
    local ticket = first_ticket(key)
    if ticket then
      ticket.key, ticket.rank = key, rank
      return ticket
    end
  end
end

local function take(ticket)
  local tag = read_turn(account, ticket.key) + ticket.size
  local held = take_account(account, ticket.images)
  local key = journal_key(ticket.purchase)
  if held then
    local packed = cjson.decode(redis.call('HGET', key, 'consumptions'))
    packed[#packed + 1] = held
    redis.call('HSET', key, 'consumptions', cjson.encode(packed))
  end
  redis.call('HSET', key, 'state', 'reserved')
  redis.call('SADD', told, ticket.purchase)
  redis.call('ZREM', tickets_key(account, ticket.key), ticket.member)
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

-- Microseconds until this worker's first ticket, as far as `MAX_STEPS` tickets tell.
local function time_until_own()
  local keys, ahead = {}, 0
  for _, head in ipairs(redis.call('ZRANGE', queue_key('heads', account.name), 0, MAX_KEYS - 1)) do
    local rank, key = head:match('^(%d+) (.*)$')
    local found = { tag = read_turn(account, key), rank = rank, next = 1, tickets = {} }
    for _, member in ipairs(redis.call('ZRANGE', tickets_key(account, key), 0, MAX_STEPS - 1)) do
      local ticket = read_ticket(member)
      if not slow[ticket.worker] then
        table.insert(found.tickets, ticket)
      end
    end
    table.insert(keys, found)
  end
  for _ = 1, MAX_STEPS do
    local best, ends
    for _, key in ipairs(keys) do
      local ticket = key.tickets[key.next]
      local tag = ticket and key.tag + ticket.size
      if ticket and (not best or tag < ends or (tag == ends and key.rank < best.rank)) then
        best, ends = key, tag
      end
    end
    local ticket = best and best.tickets[best.next]
    if not ticket then
      return 0
    end
    if ticket.worker == worker then
      return time_until(account, ticket.images, ahead)
    end
    ahead, best.tag, best.next = ahead + ticket.images, ends, best.next + 1
  end
  return time_until(account, 1, ahead)
end

if #ARGV > 4 then
  redis.call('SREM', told, unpack(ARGV, 5))
end
redis.call('SREM', slow_key, worker)
for _, name in ipairs(redis.call('SMEMBERS', slow_key)) do
  slow[name] = true
end
for _ = 1, MAX_TAKEN do
  local ticket = next_ticket()
  if not ticket or not may_go(account, ticket.images) then
    break
  elseif ticket.worker == worker then
    take(ticket)
  elseif is_passed(ticket) then
    slow[ticket.worker] = true
    redis.call('SADD', slow_key, ticket.worker)
    redis.call('EXPIRE', slow_key, QUEUE_SECONDS)
  else
    break
  end
end
if redis.call('EXISTS', queue_key('heads', account.name)) == 0 then
  account.count, account.images = 0, 0 -- also if the store has lost writes
  redis.call('DEL', slow_key)
end
write_windows()
write_account(account)
redis.call('EXPIRE', told, QUEUE_SECONDS)
return { redis.call('SMEMBERS', told), account.count, time_until_own() }
