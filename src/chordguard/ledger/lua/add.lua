-- Add members to a chord; its header is a JSON array, to which theirs is joined.
local count, members, expires = ARGV[2], ARGV[3], ARGV[4]

local lifetime = redis.call('HGET', record, 'lifetime')
if redis.call('GET', c) == 'done' or (lifetime and redis.call('EXISTS', c) == 1) then
    return 0
end
if redis.call('SADD', d, '+' .. members) == 0 then
    return 1 -- they came with an attempt whose answer was lost
end
redis.call('INCRBY', t, count)
redis.call('EXPIRE', t, lifetime or expires)
redis.call('EXPIRE', d, lifetime or expires)
if lifetime then
    local field = redis.call('HEXISTS', record, 'header') == 1 and 'header' or 'added'
    local known = redis.call('HGET', record, field) or '[]'
    known = known == '[]' and members or string.sub(known, 1, -2) .. ',' .. string.sub(members, 2)
    redis.call('HSET', record, field, known)
end
return 1
