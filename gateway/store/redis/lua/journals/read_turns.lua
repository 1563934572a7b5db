-- KEYS: the account's queue with the tickets of all its keys, and the journals.
-- ARGV: account, its rate and concurrency ('' = none), the purchases.
-- Returns state, position and estimated wait of each; `refused` for one that is not reserved, or of
-- which the store has lost the place.
local account = open_account(ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]))
local found, states_of, places, names = {}, {}, {}, {}
for i = 4, #ARGV do
  local state, packed = unpack(redis.call('HMGET', journal_key(ARGV[i]), 'state', 'place'))
  local place = state == 'queued' and cjson.decode(packed)
  states_of[i], places[i] = state, place
  if place and place.account == account.name then
    names[#names + 1] = tickets_key(account, place.key)
  end
end
add_needed = function(asked)
  if redis.call('ZCARD', queue_key('heads', account.name)) <= MAX_KEYS then
    add_tickets_keys(asked, account, redis.call('HGETALL', queue_key('keys', account.name)))
  end
end
need(names)
for i = 4, #ARGV do
  local state, place = states_of[i], places[i]
  local tag, rank
  if place and place.account == account.name then
    tag, rank = read_turn(account, place.key)
  end
  local turn = { (state == 'reserved' or state == 'received') and 'taken' or 'refused', 0, 0 }
  if tag then
    local name = tickets_key(account, place.key)
    local first = redis.call('ZRANGE', name, 0, 0, 'WITHSCORES')
    local head = read_ticket(first[1], first[2])
    local ticket = read_ticket(place.member, redis.call('ZSCORE', name, place.member) or first[2])
    local own = ticket.score - head.score + head.size
    local own_images = math.ceil((own - ticket.size) / (head.size / head.images))
    local besides = own_images + ticket.images
    local count, images = count_ahead(account, place.key, tag + own, rank, besides)
    images = images + own_images
    count = count + redis.call('ZCOUNT', name, '-inf', digits(ticket.score))
    turn = { state, count, time_until(account, ticket.images, images) }
  end
  table.insert(found, turn)
end
return found
