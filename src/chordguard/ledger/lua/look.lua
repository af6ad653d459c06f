-- Look at a live chord again at `due`; until then its keys live on.
local again = ARGV[2]

local lifetime = redis.call('HGET', record, 'lifetime')
if not lifetime then
    redis.call('ZREM', due, group_id)
    return 0
end
be_due(again)
for _, key in ipairs({record, j, t, s, d, group}) do
    redis.call('EXPIRE', key, lifetime)
end
return 1
