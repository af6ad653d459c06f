-- Start to count a chord. Applied again, a frozen one has the same id.
local c, record, due = unpack(KEYS)
local group_id, now, when, lifetime, header, body = unpack(ARGV)

redis.call('DEL', c, record)
redis.call('HSET', record, 'created', now, 'progressed', now, 'lifetime', lifetime)
if header ~= '' then
    redis.call('HSET', record, 'header', header)
end
if body ~= '' then
    redis.call('HSET', record, 'body', body)
end
redis.call('EXPIRE', record, lifetime)
be_due(due, group_id, when)
return 1
