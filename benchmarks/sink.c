/* Receives on port 80, or the one of its argument, of all addresses until the client is done, connection after connection. */
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static char buffer[1 << 20];

int main(int count, char **words)
{
    int port = count > 1 ? atoi(words[1]) : 80;
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) ||
        bind(listener, (struct sockaddr *)&where, sizeof where) || listen(listener, 16))
        return 1;
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0)
            return 1;
        while (read(client, buffer, sizeof buffer) > 0)
            ;
        close(client);
    }
}
