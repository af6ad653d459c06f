-- Tell the size of a chord, just before its last member is sent, and its members if need be.
local size, expires, header = ARGV[2], tonumber(ARGV[3]), ARGV[4]

local lifetime = redis.call('HGET', record, 'lifetime')
expires = lifetime or expires
if tonumber(expires) > 0 then
    redis.call('SET', s, size, 'EX', expires)
else
    redis.call('SET', s, size)
end
if lifetime then
    redis.call('HSET', record, 'size', size)
    if header ~= '' and redis.call('HEXISTS', record, 'header') == 0 then
        local added = redis.call('HGET', record, 'added')
        if added then
            header = string.sub(header, 1, -2) .. ',' .. string.sub(added, 2)
        end
        redis.call('HSET', record, 'header', header)
    end
else
    -- Applied again, a frozen chord has the same id.
    redis.call('DEL', c)
end
return 1
