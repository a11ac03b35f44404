package front

// ParseStream builds the request of a stream.
var ParseStream = parseStream
