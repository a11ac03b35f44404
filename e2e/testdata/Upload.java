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

/** Sends a body in chunks through a proxy and prints the status of the answer. */
class Upload {
    /** Arguments: old|new (which of Java's two clients), PROXY-HOST, PROXY-PORT, URL, BYTES. */
    public static void main(String[] args) throws Exception {
        var proxy = new InetSocketAddress(args[1], Integer.parseInt(args[2]));
        var url = URI.create(args[3]);
        var body = new byte[Integer.parseInt(args[4])];
        if (args[0].equals("old")) {
            var connection = (HttpURLConnection) url.toURL().openConnection(new Proxy(Proxy.Type.HTTP, proxy));
            connection.setRequestMethod("POST");
            connection.setDoOutput(true);
            connection.setChunkedStreamingMode(16384);
            try (OutputStream out = connection.getOutputStream()) {
                out.write(body);
            }
            System.out.println(connection.getResponseCode());
            return;
        }
        var client = HttpClient.newBuilder().proxy(ProxySelector.of(proxy)).build();
        var request = HttpRequest.newBuilder(url)
            .POST(HttpRequest.BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(body))).build();
        System.out.println(client.send(request, HttpResponse.BodyHandlers.discarding()).statusCode());
    }
}
