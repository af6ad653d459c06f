-- Read what is known of live chords; false for each that is not known. The keys of a chord begin
-- with KEYS[1] and its id. Little of it comes as values of their own: clients are slow to read them.
local prefix, is_ordered, fields = KEYS[1], ARGV[1] == '1', cjson.decode(ARGV[2])

local records = {}
for index = 3, #ARGV do
    local chord = prefix .. ARGV[index]
    local header, body = unpack(redis.call('HMGET', chord .. '.chordguard', 'header', 'body'))
    local known = redis.call('HMGET', chord .. '.chordguard', unpack(fields))
    records[index - 2] = known[#fields] and {
        cjson.encode({
            known,
            redis.call(is_ordered and 'ZCARD' or 'LLEN', chord .. '.j'),
            redis.call('EXISTS', chord .. '.s'),
            redis.call('GET', chord .. '.t'),
            redis.call('GET', chord .. '.c'),
            redis.call('PTTL', chord .. '.c'),
        }),
        header,
        body,
    }
end
return records
