-- Start to count a chord. Applied again, a frozen one has the same id.
local group_id, now, when, lifetime, header, body, signatures = unpack(ARGV)

redis.call('DEL', c, record)
redis.call('HSET', record, 'created', now, 'progressed', now, 'lifetime', lifetime)
for name, value in pairs({header = header, body = body, signatures = signatures}) do
    if value ~= '' then
        redis.call('HSET', record, name, value)
    end
end
redis.call('EXPIRE', record, lifetime)
be_due(group_id, when)
return 1
