-- Look at a live chord again at `due`; until then its keys live on.
local due, record = KEYS[1], KEYS[2]
local group_id, again = ARGV[1], ARGV[2]

local lifetime = redis.call('HGET', record, 'lifetime')
if not lifetime then
    redis.call('ZREM', due, group_id)
    return 0
end
be_due(due, group_id, again)
for index = 2, #KEYS do
    redis.call('EXPIRE', KEYS[index], lifetime)
end
return 1
