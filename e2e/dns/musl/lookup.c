// lookup prints the IPv4 addresses of a name that the resolver of the C library finds.
#include <netdb.h>
#include <stdio.h>
#include <arpa/inet.h>
int main(int argc, char **argv) {
	struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found;
	if (argc != 2 || getaddrinfo(argv[1], NULL, &hints, &found) != 0) return 2;
	char text[INET_ADDRSTRLEN];
	for (; found; found = found->ai_next)
		if (found->ai_family == AF_INET) puts(inet_ntop(AF_INET, &((struct sockaddr_in *)found->ai_addr)->sin_addr, text, sizeof text));
	return 0;
}
