-- The queue of an account at upstream, for purchases that its rate or its concurrency makes wait.
--
-- Keys take turns. A key's tickets are a sorted set in the order of their arrival, and the key has a
-- tag: where it is in a virtual time in which every key of priority 1 is given one image a round. The
-- ticket whose tag (that of its key, plus its own size) is the smallest is next. A key that joins
-- begins at the tag of the latest turn.

local ROUND = 2520 -- one image of priority 1: divisible by every priority
local MAX_QUEUED = 10000 -- commands.MAX_QUEUED
local MAX_STOP = 120 * SECOND -- commands.MAX_STOP_SECONDS
local QUEUE_SECONDS = 86400 -- an untouched queue is removed
local MAX_KEYS = 50 -- keys that are looked at for the next turn
local MAX_PASSED = 100 -- tickets of a key that are passed over at a time

local function queue_key(part, name)
  return BOOKS .. 'queue:' .. part .. ':' .. name
end

-- Reads the account's bucket and queue; `rate` and `max_open` (open purchases) are numbers or nil.
local function open_account(name, rate, max_open)
  local stored = read_hash(queue_key('account', name)) or {}
  local account = {
    name = name, rate = rate, max_open = max_open, key = queue_key('account', name),
    joined = tonumber(stored.joined or 0), latest = tonumber(stored.latest or 0),
    count = tonumber(stored.count or 0), images = tonumber(stored.images or 0),
    stopped = math.min(tonumber(stored.stopped or 0), now + MAX_STOP),
    head = stored.head or '', head_since = tonumber(stored.head_since or 0),
    window = open_window('upstream:' .. name, 'concurrency', nil),
  }
  if rate then
    account.level = rate * UNIT
    if stored.level then
      -- A bucket from the future, of a clock that was set back, refills from now on.
      local elapsed = math.max(0, now - tonumber(stored.at))
      local missing = account.level - tonumber(stored.level)
      if elapsed * rate < missing then
        account.level = account.level - missing + elapsed * rate
      end
    end
  end
  return account
end

local function write_account(account)
  local fields = {
    'joined', digits(account.joined), 'latest', digits(account.latest), 'count',
    digits(account.count), 'images', digits(account.images), 'stopped', digits(account.stopped),
    'head', account.head, 'head_since', digits(account.head_since), 'at', digits(now),
  }
  if account.rate then
    fields[#fields + 1] = 'level'
    fields[#fields + 1] = digits(account.level)
  end
  redis.write('HSET', account.key, unpack(fields))
  redis.write('EXPIRE', account.key, QUEUE_SECONDS)
end

-- What the bucket must hold for so many images: a larger request goes when it is full.
local function needed(account, images)
  return math.min(images, account.rate) * UNIT
end

-- Microseconds until the account may be sent so many images, after `ahead` others. 0 also while only
-- its concurrency makes it wait, which nothing can foretell.
local function time_until(account, images, ahead)
  local stopped = math.max(0, account.stopped - now)
  if not account.rate then
    return stopped
  end
  if account.rate == 0 then
    return MAX_STOP
  end
  local missing = ahead * UNIT + needed(account, images) - account.level
  return math.max(stopped, math.ceil(math.max(0, missing) / account.rate))
end

local function has_room(account)
  return not account.max_open or amount_in(account.window, 'purchases', 'reserved') < account.max_open
end

local function may_go(account, images)
  return has_room(account) and account.stopped <= now
    and (not account.rate or (account.rate > 0 and account.level >= needed(account, images)))
end

-- Takes the account's tokens. Returns the consumption with which the journal holds the account, as
-- `pack_consumptions` has it, or nil: settling it releases it.
local function take_account(account, images)
  if account.rate then
    account.level = account.level - images * UNIT
  end
  if account.max_open then
    add_to_window(account.window, 'purchases', 'reserved', 1)
    return {
      'upstream:' .. account.name, 'purchases', 'concurrency', digits(account.max_open), '1',
      'concurrency', '',
    }
  end
end

local function tickets_key(account, key)
  return queue_key('tickets', account.name .. ':' .. key)
end

local function read_ticket(member, score)
  local purchase, worker, images, priority = member:match('^(%S+) (%S+) (%d+) (%d+)$')
  images = tonumber(images)
  return {
    member = member, purchase = purchase, worker = worker, images = images,
    size = images * ROUND / tonumber(priority), score = tonumber(score),
  }
end

-- Tag and rank of a key that waits. The rank decides between equal tags: who came first.
local function read_turn(account, key)
  local found = redis.call('HGET', queue_key('keys', account.name), key)
  if found then
    local tag, rank = found:match('^(%d+) (%d+)$')
    return tonumber(tag), rank
  end
end

local function head_member(rank, key)
  return rank .. ' ' .. key
end

-- Puts a key where its first ticket belongs; a key without tickets is removed.
local function place_key(account, key, tag, rank)
  local first = redis.call('ZRANGE', tickets_key(account, key), 0, 0)[1]
  local heads, keys = queue_key('heads', account.name), queue_key('keys', account.name)
  if not first then
    redis.write('ZREM', heads, head_member(rank, key))
    redis.write('HDEL', keys, key)
    return
  end
  redis.write('ZADD', heads, digits(tag + read_ticket(first).size), head_member(rank, key))
  redis.write('HSET', keys, key, digits(tag) .. ' ' .. rank)
  for _, name in ipairs({ heads, keys, tickets_key(account, key) }) do
    redis.write('EXPIRE', name, QUEUE_SECONDS)
  end
end

-- Adds those of all keys of the queue, from its hash of keys.
local function add_tickets_keys(names, account, packed)
  for i = 1, #packed, 2 do
    names[#names + 1] = tickets_key(account, packed[i])
  end
end

-- Whether the script has asked for keys so often that it has to do without further ones. While keys join
-- and leave a queue all the time, the script would ask for ever.
local function has_asked_often()
  return declared[BOOKS .. 'asked-often']
end

-- A waiting key whose tickets the script may not read, because they are not declared. `count_ahead`
-- assumes that all its tickets are as large as the first one.
local function guess_key(account, key, tag, rank)
  local ends = redis.call('ZSCORE', queue_key('heads', account.name), head_member(rank, key))
  return ends and { key = key, tag = tag, rank = rank, size = tonumber(ends) - tag }
end

-- The keys that wait with the first ticket of each, for `count_ahead`; nil if they are many.
local function read_keys(account)
  account.others = redis.call('ZCARD', queue_key('heads', account.name))
  if account.others > MAX_KEYS then
    return nil
  end
  local keys, packed = {}, redis.call('HGETALL', queue_key('keys', account.name))
  local names = {}
  add_tickets_keys(names, account, packed)
  if not has_asked_often() then
    need(names)
  end
  account.unknown = account.count -- tickets of the keys that are guessed
  for i = 1, #packed, 2 do
    local name, tag, rank = names[(i + 1) / 2], packed[i + 1]:match('^(%d+) (%d+)$')
    local is_known = declared[name]
    local first = is_known and redis.call('ZRANGE', name, 0, 0, 'WITHSCORES') or {}
    if not is_known then
      table.insert(keys, guess_key(account, packed[i], tonumber(tag), rank))
    elseif first[1] then
      if has_asked_often() then
        account.unknown = account.unknown - redis.call('ZCARD', name)
      end
      local head = read_ticket(first[1], first[2])
      table.insert(keys, {
        key = packed[i], name = name, tag = tonumber(tag), rank = rank,
        before = head.score - head.size, per_image = head.size / head.images,
      })
    end
  end
  return keys
end

-- The number of tickets and their images that are before a tag, among all keys but one; the account's
-- images that wait are `besides` those of this key.
local function count_ahead(account, own_key, tag, own_rank, besides)
  if not account.others then
    account.keys = read_keys(account)
  end
  local count, images = 0, 0
  if not account.keys then -- an estimate: each is given as much as a key of priority 1
    images = math.floor((tag - account.latest) * account.others / ROUND)
    images = math.min(images, math.max(0, account.images - besides))
    return math.min(account.count, images), images
  end
  local guessed = 0
  for _, key in ipairs(account.keys) do
    if key.key ~= own_key and key.size then
      local found = math.max(0, math.floor((tag - key.tag) / key.size))
      if found * key.size == tag - key.tag and key.rank >= own_rank then
        found = found - 1
      end
      guessed = guessed + math.max(0, found)
    elseif key.key ~= own_key then
      local last = digits(key.before + tag - key.tag)
      last = key.rank < own_rank and last or '(' .. last
      local found = redis.call('ZCOUNT', key.name, '-inf', last)
      if found > 0 then
        local score = redis.call('ZRANGE', key.name, found - 1, found - 1, 'WITHSCORES')[2]
        count = count + found
        images = images + (tonumber(score) - key.before) / key.per_image
      end
    end
  end
  if guessed > 0 then
    guessed = math.min(guessed, math.max(0, account.unknown))
    count = count + guessed
    images = images + guessed * account.images / math.max(1, account.count)
  end
  return count, math.ceil(images)
end

-- The place that a new ticket of a key would get: its position, and the images before it.
local function foresee(account, key, size)
  local tag, rank = read_turn(account, key)
  local own, own_images = 0, 0
  if tag then
    local name = tickets_key(account, key)
    local first = redis.call('ZRANGE', name, 0, 0, 'WITHSCORES')
    local last = redis.call('ZRANGE', name, -1, -1, 'WITHSCORES')
    local head = read_ticket(first[1], first[2])
    local waiting = tonumber(last[2]) - head.score + head.size
    own, tag = redis.call('ZCARD', name), tag + waiting
    own_images = math.ceil(waiting / (head.size / head.images))
  else
    tag, rank = account.latest, string.format('%016.0f', account.joined + 1)
  end
  local count, images = count_ahead(account, key, tag + size, rank, own_images)
  return own + count + 1, own_images + images
end

local function join_queue(account, place, purchase, worker)
  account.joined = account.joined + 1
  account.count, account.images = account.count + 1, account.images + place.images
  local name = tickets_key(account, place.key)
  local last = redis.call('ZRANGE', name, -1, -1, 'WITHSCORES')
  local score = tonumber(last[2] or 0) + place.size
  local member = table.concat(
    { purchase, worker, digits(place.images), digits(place.priority) }, ' ')
  redis.write('ZADD', name, digits(score), member)
  if not last[1] then
    place_key(account, place.key, account.latest, string.format('%016.0f', account.joined))
  end
  return member
end

-- The purchases of a worker whose turn has come, until it has seen them.
local function taken_key(account, worker)
  return queue_key('taken', account .. ':' .. worker)
end

local function leave_queue(account, key, member)
  local name = tickets_key(account, key)
  if redis.write('ZREM', name, member) == 0 then
    return
  end
  local tag, rank = read_turn(account, key)
  account.count = math.max(0, account.count - 1)
  account.images = math.max(0, account.images - read_ticket(member).images)
  if tag then
    place_key(account, key, tag, rank)
  end
end

-- Adds the keys that closing or rerouting an open journal writes, except for its windows.
local function add_journal_keys(names, journal)
  if journal.worker ~= '' then -- a lost journal has no worker
    names[#names + 1] = open_key(journal.worker)
    names[#names + 1] = reserved_key(journal.worker)
  end
  if not journal.place then
    return
  end
  local place = cjson.decode(journal.place)
  names[#names + 1] = taken_key(place.account, journal.worker)
  if journal.state == 'queued' then
    for _, part in ipairs({ 'account', 'keys', 'heads' }) do
      names[#names + 1] = queue_key(part, place.account)
    end
    names[#names + 1] = queue_key('tickets', place.account .. ':' .. place.key)
    names[#names + 1] = window_key('upstream:' .. place.account, 'concurrency')
  end
end

local function need_journal(journal)
  local names = {}
  add_journal_keys(names, journal)
  need(names)
end

-- Takes an open journal's ticket out of the queue of its account, and cancels a turn that its worker was
-- given. `opened` is an account that the script writes later. `opened` is an account that is written later.
local function leave_place(journal, purchase, opened)
  if not journal.place then
    return
  end
  local place = cjson.decode(journal.place)
  redis.write('SREM', taken_key(place.account, journal.worker), purchase)
  if journal.state ~= 'queued' then
    return
  end
  if opened and opened.name == place.account then
    return leave_queue(opened, place.key, place.member)
  end
  local account = open_account(place.account)
  leave_queue(account, place.key, place.member)
  redis.write('HSET', account.key, 'count', digits(account.count), 'images', digits(account.images))
  redis.write('EXPIRE', account.key, QUEUE_SECONDS)
end

-- A place that the gateway has sent as JSON; nil for ''.
local function read_place(packed)
  if packed == '' then
    return nil
  end
  local place = cjson.decode(packed)
  place.images, place.priority = tonumber(place.images), tonumber(place.priority)
  place.size = place.images * ROUND / place.priority
  place.max_wait = tonumber(place.max_wait) -- nil for ''
  place.opened =
    open_account(place.account, tonumber(place.rate), tonumber(place.concurrent))
  return place
end

local NO_TURN = { 'taken', 0, 0 }

-- Decides, and writes nothing yet: `taken`, `queued` or `refused`, the position, and the estimated wait.
local function decide_turn(place)
  if not place then
    return NO_TURN
  end
  local account = place.opened
  if account.count == 0 and may_go(account, place.images) then
    return NO_TURN
  end
  local position, ahead = foresee(account, place.key, place.size)
  local wait = time_until(account, place.images, ahead)
  if account.count >= MAX_QUEUED or (place.max_wait and wait > place.max_wait) then
    return { 'refused', position, wait }
  end
  return { 'queued', position, wait }
end

-- Carries out what `decide_turn` decided. Returns the fields of the journal, and adds what the account
-- holds to the packed consumptions.
local function write_turn(turn, place, purchase, worker, packed)
  if not place then
    return { 'state', 'reserved' }
  end
  local member = ''
  if turn[1] == 'taken' then
    packed[#packed + 1] = take_account(place.opened, place.images)
  else
    member = join_queue(place.opened, place, purchase, worker)
  end
  write_account(place.opened)
  return {
    'state', turn[1] == 'taken' and 'reserved' or 'queued',
    'place', cjson.encode({ account = place.account, key = place.key, member = member }),
  }
end
