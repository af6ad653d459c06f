-- Read what is known of live chords; false for each that is not known. Little of it comes as values
-- of their own: clients are slow to read them.
local is_ordered, fields = ARGV[2] == '1', cjson.decode(ARGV[3])

local records = {}
for index = 4, #ARGV do
    local chord = group .. ARGV[index]
    local known = redis.call('HMGET', chord .. '.chordguard', 'header', 'body', unpack(fields))
    local header, body = table.remove(known, 1), table.remove(known, 1)
    records[index - 3] = known[#fields] and {
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
