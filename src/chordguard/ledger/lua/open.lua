-- Start to count a chord. Applied again, a frozen one has the same id.
local now, when, lifetime, header, body, signatures = unpack(ARGV, 2)

if redis.call('GET', c) == 'done' then
    redis.call('DEL', j) -- the parts of one that has failed
end
redis.call('DEL', c, record)
redis.call('HSET', record, 'created', now, 'progressed', now, 'lifetime', lifetime)
for name, value in pairs({header = header, body = body, signatures = signatures}) do
    if value ~= '' then
        redis.call('HSET', record, name, value)
    end
end
redis.call('EXPIRE', record, lifetime)
be_due(when)
return 1
