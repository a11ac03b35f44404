import java.io.ByteArrayInputStream;
import java.io.OutputStream;
import java.net.HttpURLConnection;
import java.net.InetSocketAddress;
import java.net.Proxy;
import java.net.ProxySelector;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** Sends bodies in chunks through a proxy, each over a connection of its own, and prints the status of each answer. */
class Upload {
    /** Arguments: old|new (which of Java's two clients), PROXY-HOST, PROXY-PORT, and URL and BYTES of each upload. */
    public static void main(String[] args) throws Exception {
        var proxy = new InetSocketAddress(args[1], Integer.parseInt(args[2]));
        for (int i = 3; i < args.length; i += 2) {
            var url = URI.create(args[i]);
            var body = new byte[Integer.parseInt(args[i + 1])];
            System.out.println(args[0].equals("old") ? sendOld(proxy, url, body) : sendNew(proxy, url, body));
        }
    }

    static int sendOld(InetSocketAddress proxy, URI url, byte[] body) throws Exception {
        var connection = (HttpURLConnection) url.toURL().openConnection(new Proxy(Proxy.Type.HTTP, proxy));
        connection.setRequestMethod("POST");
        connection.setDoOutput(true);
        connection.setChunkedStreamingMode(16384);
        try (OutputStream out = connection.getOutputStream()) {
            out.write(body);
        }
        try {
            return connection.getResponseCode();
        } finally {
            connection.disconnect();
        }
    }

    static int sendNew(InetSocketAddress proxy, URI url, byte[] body) throws Exception {
        var client = HttpClient.newBuilder().proxy(ProxySelector.of(proxy)).build();
        var request = HttpRequest.newBuilder(url)
            .POST(HttpRequest.BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(body))).build();
        return client.send(request, HttpResponse.BodyHandlers.discarding()).statusCode();
    }
}
